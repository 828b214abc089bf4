"""A face is a point in a linear space: meshes, bases, rigs, landmarks and the files they come from."""

from morphable.basis import GaussianBasis as GaussianBasis
from morphable.io import ModelFileError as ModelFileError
from morphable.io import load as load
from morphable.io import save as save
from morphable.landmarks import ContourFans as ContourFans
from morphable.landmarks import SurfacePoints as SurfacePoints
from morphable.mesh import Mesh as Mesh
from morphable.model import MorphableModel as MorphableModel
from morphable.rig import Rig as Rig
