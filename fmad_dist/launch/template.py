"""Imported first by the process that ranks are copies of (processes.py): it ends with the one that started it.

The copies end with it in turn.
"""

from fmad_dist.base.process import die_with_parent, name_process, spare_collector

die_with_parent()
name_process("fmad template")
spare_collector()
