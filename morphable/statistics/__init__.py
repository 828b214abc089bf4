"""Statistics of registered shapes: components, symmetry, attributes, multilinear spaces and measures of quality."""

from morphable.statistics.attributes import Attribute as Attribute
from morphable.statistics.attributes import attribute_direction as attribute_direction
from morphable.statistics.measures import Curve as Curve
from morphable.statistics.measures import Measures as Measures
from morphable.statistics.measures import generalisation as generalisation
from morphable.statistics.measures import leave_one_out as leave_one_out
from morphable.statistics.measures import measure as measure
from morphable.statistics.measures import specificity as specificity
from morphable.statistics.mirror import mirrored as mirrored
from morphable.statistics.mirror import symmetric_components as symmetric_components
from morphable.statistics.multilinear import Bilinear as Bilinear
from morphable.statistics.multilinear import Multilinear as Multilinear
from morphable.statistics.multilinear import bilinear_model as bilinear_model
from morphable.statistics.multilinear import higher_order_svd as higher_order_svd
from morphable.statistics.multilinear import identity_distribution as identity_distribution
from morphable.statistics.principal_components import PrincipalComponents as PrincipalComponents
from morphable.statistics.principal_components import ProbabilisticComponents as ProbabilisticComponents
from morphable.statistics.principal_components import StatisticsError as StatisticsError
from morphable.statistics.principal_components import principal_components as principal_components
from morphable.statistics.principal_components import probabilistic_components as probabilistic_components
from morphable.statistics.principal_components import streamed_components as streamed_components
