"""Validation beside training."""

from lightning_gnnopt.evaluation.async_validation import AsyncValidation
from lightning_gnnopt.evaluation.messages import ValidationFailed

__all__ = ["AsyncValidation", "ValidationFailed"]
