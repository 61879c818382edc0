"""Ten optimizers from the literature, one per file, as an outside plugin of Alignment Flows."""

from __future__ import annotations

from alignment_core.plugin_api import AlignmentOptimizer, hookimpl
from alignment_zoo.bco import BCO
from alignment_zoo.cpo import CPO
from alignment_zoo.dro import DRO
from alignment_zoo.gdpo import GDPO
from alignment_zoo.ipo import IPO
from alignment_zoo.orpo import ORPO
from alignment_zoo.rmu import RMU
from alignment_zoo.simpo import SimPO
from alignment_zoo.spin import SPIN
from alignment_zoo.tr_dpo import TRDPO


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [SimPO, IPO, ORPO, CPO, TRDPO, BCO, DRO, RMU, SPIN, GDPO]
