"""One template on many surfaces: alignment, deformation and correspondence of face meshes."""

from morphable.registration.alignment import AlignmentError as AlignmentError
from morphable.registration.alignment import Similarity as Similarity
from morphable.registration.alignment import generalised_procrustes as generalised_procrustes
from morphable.registration.alignment import similarity as similarity
from morphable.registration.closest_points import SurfaceError as SurfaceError
from morphable.registration.closest_points import SurfaceSearch as SurfaceSearch
from morphable.registration.correspondence import SurfaceMap as SurfaceMap
from morphable.registration.correspondence import surface_map as surface_map
from morphable.registration.gaussian_process import DeformationProcess as DeformationProcess
from morphable.registration.gaussian_process import fit_surface as fit_surface
from morphable.registration.nonrigid_icp import NonrigidSettings as NonrigidSettings
from morphable.registration.nonrigid_icp import nonrigid_icp as nonrigid_icp
from morphable.registration.scan_registration import Registration as Registration
from morphable.registration.scan_registration import RegistrationError as RegistrationError
from morphable.registration.scan_registration import RegistrationSettings as RegistrationSettings
from morphable.registration.scan_registration import carry as carry
from morphable.registration.scan_registration import register as register
from morphable.registration.template import Template as Template
