"""All parts of the campaign, in the order of its table."""

from __future__ import annotations

import part_clock
import part_disk
import part_drivers
import part_failpoints
import part_files
import part_journal
import part_kills
import part_submit
import part_suites
import part_syscalls

PARTS = {
    part.name: part
    for part in (
        part_failpoints.PART,
        part_kills.PART,
        part_drivers.PART,
        part_clock.PART,
        part_submit.PART,
        part_journal.PART,
        *part_suites.PARTS,
        part_syscalls.PART,
        part_disk.PART,
        part_files.PART,
    )
}
