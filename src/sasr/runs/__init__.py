"""What became of runs, exams and comparisons: their states, and `sasr runs`, which lists them. No torch here."""
