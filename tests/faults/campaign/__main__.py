"""The fault campaign: ``python tests/faults/campaign [PART ...]``.

Without a part, all of them, one after the other. What has been done is in the results file (JSON lines), and is not
done again: interrupt it as you like. ``--share 1/2`` and ``--share 2/2`` divide it between two processes, each with
``--results`` of its own. ``--table FILE`` writes the table of what is known and ends.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import table
from cells import run_part
from parts import PARTS


def main() -> int:
    """Run parts; 1 when anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--short", action="store_true", help="the short form of each")
    parser.add_argument("--again", action="store_true", help="what was violated is tried again")
    parser.add_argument("--results", type=Path, default=Path("campaign.jsonl"), help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where runs are made; default: a temporary one")
    parser.add_argument("--share", type=share, default=(1, 1), metavar="K/N", help="every N-th from the K-th on")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table into this page, and run nothing")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    if options.table:
        table.write(options.table, options.results, PARTS.values())
        return 0
    bad = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a trial ends what it has started, stopped or not
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=options.folder, ignore_cleanup_errors=True) as folder:
        for name in options.parts or PARTS:
            where = Path(folder) / name
            where.mkdir()
            how = {"long": not options.short, "again": options.again, "share": options.share}
            for outcome in run_part(PARTS[name], where, options.results, **how):
                bad += bool(outcome.violations)
                print(f"{name} {outcome.cell}: {'VIOLATED' if outcome.violations else 'ok'} {outcome.seconds} s")
                for violation in outcome.violations:
                    print(f"    {violation}")
                sys.stdout.flush()
    return 1 if bad else 0


def share(text: str) -> tuple[int, int]:
    """``K/N``.

    Raises:
        ValueError: it is not.
    """
    mine, others = map(int, text.split("/"))
    if not 1 <= mine <= others:
        raise ValueError(text)
    return mine, others


if __name__ == "__main__":
    sys.exit(main())
