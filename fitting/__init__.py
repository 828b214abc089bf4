"""Explain images by parameters: detection, energies, solvers, plans, and what a fit writes."""

from fitting.detection import Face as Face
from fitting.detection import LandmarkNoise as LandmarkNoise
from fitting.detection import LandmarkProvider as LandmarkProvider
from fitting.detection import detect_faces as detect_faces
from fitting.export import save_results as save_results
from fitting.export import write_head_glb as write_head_glb
from fitting.fit import Fit as Fit
from fitting.fit import Fitter as Fitter
from fitting.fit import Settings as Settings
from fitting.observation import Photo as Photo
from fitting.observation import read_landmarks as read_landmarks
from fitting.observation import read_mask as read_mask
from fitting.observation import read_photo as read_photo
from fitting.schedule import Stage as Stage
from fitting.schedule import coarse_to_fine as coarse_to_fine
