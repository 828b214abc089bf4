"""A morphable model of one's own, from scans of people and a template mesh."""

from morphable.building.model import BuildSettings as BuildSettings
from morphable.building.model import BuiltModel as BuiltModel
from morphable.building.model import assemble_model as assemble_model
from morphable.building.model import build_model as build_model
from morphable.building.registered_scans import RegisteredScan as RegisteredScan
from morphable.building.registered_scans import register_scans as register_scans
from morphable.building.scans import BuildError as BuildError
from morphable.building.scans import Scan as Scan
from morphable.building.scans import read_scan as read_scan
from morphable.building.scans import read_scans as read_scans
