"""What a model can be asked: a closed union by `kind`."""

from typing import Annotated

from pydantic import Field

from medae.tasks.anomaly import Anomaly
from medae.tasks.base import Task
from medae.tasks.restoration import Restoration
from medae.tasks.segmentation import Segmentation

TaskConfig = Annotated[Segmentation | Restoration | Anomaly, Field(discriminator="kind")]

__all__ = ["Anomaly", "Restoration", "Segmentation", "Task", "TaskConfig"]
