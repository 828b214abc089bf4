import numpy as np

from morphable.symmetry import mirror_table, mirrored_units


def test_a_symmetric_mesh_gets_its_table_in_any_order_and_place(tiny):
    mean = np.asarray(tiny.mean, float)
    order = np.random.default_rng(0).permutation(len(mean))
    table = mirror_table(mean[order] + [25.0, 0, 0], middle_x=22.0)
    np.testing.assert_array_equal(order[table], np.asarray(tiny.mirror)[order])


def test_the_table_is_its_own_inverse_on_any_mesh():
    points = np.random.default_rng(1).normal(size=(200, 3)) * 50
    table = mirror_table(points)
    np.testing.assert_array_equal(table[table], np.arange(200))


def test_units_have_twins_on_the_other_side():
    names = ["jawOpen", "eyeBlinkLeft", "mouthRight", "eyeBlinkRight", "cheekSquintLeft", "mouthLeft"]
    np.testing.assert_array_equal(mirrored_units(names), [0, 3, 5, 1, 4, 2])  # one has no twin here
