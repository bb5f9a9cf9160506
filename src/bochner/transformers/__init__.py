"""Hugging Face models: their attention made linear, calibrated, finetuned, measured, saved; and undone.

    logit(i, j) = scaling · q_i·k_j = (sqrt(scaling) q_i) · (sqrt(scaling) k_j)

Everything goes through the attention interface of transformers, under names of our own; `linearize`
converts a model in place and `restore` takes it back.
"""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"bochner.transformers needs the package transformers, version 5 or later ({error}):"
        ' pip install "bochner[transformers]"'
    ) from error

from bochner.transformers.cache import LinearCache
from bochner.transformers.calibrate_report import CalibrationReport
from bochner.transformers.calibration import calibrate
from bochner.transformers.collect import collect_qkv
from bochner.transformers.convert import converted_layers, linearize, restore
from bochner.transformers.embeddings import sentence_embeddings
from bochner.transformers.finetune_loop import Training
from bochner.transformers.finetune_losses import attention_losses, distillation_loss
from bochner.transformers.finetune_trainer import DistillationTrainer
from bochner.transformers.finetuning import FinetuneReport, finetune
from bochner.transformers.interface import LINEAR, RECORDING
from bochner.transformers.layer import LinearLayer
from bochner.transformers.places import AttentionPlace, attention_places
from bochner.transformers.reporting import ConversionReport, report
from bochner.transformers.saving import from_pretrained, save_pretrained
from bochner.transformers.swap import linear_attention_swapped

__all__ = [
    "LINEAR",
    "RECORDING",
    "AttentionPlace",
    "CalibrationReport",
    "ConversionReport",
    "DistillationTrainer",
    "FinetuneReport",
    "LinearCache",
    "LinearLayer",
    "Training",
    "attention_losses",
    "attention_places",
    "calibrate",
    "collect_qkv",
    "converted_layers",
    "distillation_loss",
    "finetune",
    "from_pretrained",
    "linear_attention_swapped",
    "linearize",
    "report",
    "restore",
    "save_pretrained",
    "sentence_embeddings",
]
