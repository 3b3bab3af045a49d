"""`python -m sasr` and `torchrun -m sasr`: the same as the console command."""

import sys

from .cli import main

sys.exit(main())
