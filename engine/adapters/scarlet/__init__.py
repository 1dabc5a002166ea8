"""Models as scarlet_lite persists them, written and read without scarlet_lite."""

from deblendrt.engine.adapters.scarlet.model_reader import ScarletModel, read_model
from deblendrt.engine.adapters.scarlet.model_writer import components, model_data, write_model

__all__ = ["ScarletModel", "components", "model_data", "read_model", "write_model"]
