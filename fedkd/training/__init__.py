"""The one training loop, and prediction: what Fit, Predict and Evaluate come down to."""

from fedkd.training.batches import BatchOfOne, local_steps
from fedkd.training.inference import class_means, evaluate, predict, represent
from fedkd.training.items import item_labels, items
from fedkd.training.loop import Optimiser, fit
from fedkd.training.losses import said
from fedkd.training.student import learning_names, learning_state, requiring, student_draws

__all__ = [
    "BatchOfOne",
    "Optimiser",
    "class_means",
    "evaluate",
    "fit",
    "item_labels",
    "items",
    "learning_names",
    "learning_state",
    "local_steps",
    "predict",
    "represent",
    "requiring",
    "said",
    "student_draws",
]
