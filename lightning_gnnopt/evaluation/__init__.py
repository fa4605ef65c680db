"""Validation beside training."""

from lightning_gnnopt.evaluation.async_validation import AsyncValidation
from lightning_gnnopt.evaluation.messages import ValidationFailed, Verdict
from lightning_gnnopt.evaluation.timeline import Timeline

__all__ = ["AsyncValidation", "Timeline", "ValidationFailed", "Verdict"]
