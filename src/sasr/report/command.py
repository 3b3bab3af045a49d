"""`sasr report` on the command line."""

from __future__ import annotations

from sasr.errors import InputError, did_you_mean
from sasr.flags import Flags
from sasr.model_files import expand
from sasr.report import REPORT_FILE, describe, write_report
from sasr.terminal import TerminalView

USAGE = """\
usage: sasr report DIR [--output FILE] [--figures FOLDER]

One page with everything that a run, an exam or a comparison shows; it loads nothing from anywhere. The commands that
make DIR write it at their end; this makes it anew, also of a run that is still under way or was killed.

  sasr report runs/stories-1                       writes runs/stories-1/report.html
  sasr report runs/stories-1 --figures figures     its figures for a paper too, as SVG and PNG

  --output FILE      the page [DIR/report.html]
  --figures FOLDER   write each figure as SVG and PNG too (needs matplotlib: pip install 'sasr[figures]')"""


def report(argv: list[str]) -> int:
    """Returns the exit status, 0. Raises `InputError`."""
    parser = Flags("sasr report", names_help=True)
    parser.add_argument("directory", nargs="?")
    parser.add_argument("--output")
    parser.add_argument("--figures")
    options, rest = parser.parse_known_args(argv)
    if rest:
        raise InputError(f"unknown argument {rest[0]}{did_you_mean(rest[0], ['--output', '--figures'])}")
    if options.directory is None:
        raise InputError("no directory: name the output_dir of sasr train, exam or compare")
    say = TerminalView().message  # a print fails where the output has no signs for a name
    directory = expand(options.directory)
    page = expand(options.output) if options.output is not None else directory / REPORT_FILE
    if page.is_dir():
        raise InputError(f"--output {page} is a directory: name a file")
    if options.figures is not None:
        from sasr.report.figures import write_figures

        count = write_figures(describe(directory, page), expand(options.figures))
        say(f"{count} figures in {options.figures}, each as SVG and PNG")
    size = write_report(directory, page).stat().st_size
    say(f"{page} ({size / 1e6:.1f} MB)" if size >= 1e6 else f"{page} ({size / 1e3:.0f} kB)")
    return 0
