import numpy as np

from morphable.carried_rig import regress_joint


def test_a_joint_regressor_is_exact_on_the_mean_and_sums_to_one(tiny):
    mean = np.asarray(tiny.mean, float)
    joint = np.array([5.0, -10.0, 20.0])
    weights = regress_joint(joint, mean, np.ones(len(mean), bool))
    np.testing.assert_allclose(weights @ mean, joint, atol=1e-6)
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-9)
