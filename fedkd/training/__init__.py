"""The one training loop, and prediction: what Fit, Predict and Evaluate come down to."""

from fedkd.training.aligning import aligned, last_layer
from fedkd.training.auxiliary import Auxiliary
from fedkd.training.batches import BatchOfOne, local_steps
from fedkd.training.course import Course, Validation, span
from fedkd.training.descent import Optimiser
from fedkd.training.inference import (
    class_means,
    evaluate,
    evaluate_in_bins,
    nearest_prototype,
    predict,
    represent,
)
from fedkd.training.items import (
    item_counts,
    item_labels,
    item_numbers,
    items,
    on_all_items,
    placed,
    some,
)
from fedkd.training.learners import Trainee
from fedkd.training.loop import fit, fit_together
from fedkd.training.losses import said
from fedkd.training.made_targets import class_targets, made_targets
from fedkd.training.own_loss import OwnLoss, minimise
from fedkd.training.student import learning_names, learning_state, requiring, student_draws

__all__ = [
    "Auxiliary",
    "BatchOfOne",
    "Course",
    "Optimiser",
    "OwnLoss",
    "Trainee",
    "Validation",
    "aligned",
    "class_means",
    "class_targets",
    "evaluate",
    "evaluate_in_bins",
    "fit",
    "fit_together",
    "item_counts",
    "item_labels",
    "item_numbers",
    "items",
    "last_layer",
    "learning_names",
    "learning_state",
    "local_steps",
    "made_targets",
    "minimise",
    "nearest_prototype",
    "on_all_items",
    "placed",
    "predict",
    "represent",
    "requiring",
    "said",
    "some",
    "span",
    "student_draws",
]
