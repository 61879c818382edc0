"""Import all loss modules first. Hypothesis draws constants from loaded modules and fails if more load later."""

import alignment_core.losses.likelihood
import alignment_core.losses.policy_gradient
import alignment_core.losses.preference  # noqa: F401  `losses` would load them on first use
