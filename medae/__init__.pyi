from . import errors as errors
from .client import AsyncClient as AsyncClient
from .client import Client as Client
from .evaluation import evaluate as evaluate
from .experiment import Experiment as Experiment
from .image import Geometry as Geometry
from .image import Image as Image
from .io import read_image as read_image
from .io import write_image as write_image
from .package import ModelPackage as ModelPackage
from .package import load as load
from .predictor import Prediction as Prediction
from .predictor import Predictor as Predictor
from .training import train as train

__version__: str
