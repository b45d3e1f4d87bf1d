"""All parts of the campaign, in the order of its table."""

from __future__ import annotations

import part_failpoints
import part_kills

PARTS = {part.name: part for part in (part_failpoints.PART, part_kills.PART)}
