"""Claims about work that has not run: bound, utilisation, power, intervals, the ladder of trust.

Imports numpy only; LightGBM is loaded by the functions that need it.
"""

from .batch import OUTPUTS, predict_table
from .prediction import Prediction, predict

__all__ = ["OUTPUTS", "Prediction", "predict", "predict_table"]
