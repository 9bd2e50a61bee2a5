"""How much of a step travels to a prior and back."""

from benchmarks.transport import bytes_of_a_step


def test_a_step_is_as_large_as_its_renders_whatever_the_priors_size():
    views = 4 * 3 * 64 * 64 * 4
    for image_size in (64, 512):
        there, back = bytes_of_a_step(image_size, "x0", resized_before=False)
        assert views < there < views + 2000 and 2 * views < back < 2 * views + 2000
    there, back = bytes_of_a_step(512, "x0", resized_before=True)
    assert there > 64 * views and back > 128 * views
