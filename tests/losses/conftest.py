"""Hypothesis draws constants from the modules that are loaded, and calls it flaky when more appear during a test."""

import alignment_core.losses.likelihood
import alignment_core.losses.policy_gradient
import alignment_core.losses.preference  # noqa: F401  `losses` would load them on first use
