"""Where the steps of a run begin in its stream, when the batch changes and when samples are left out."""

from fmad_dist.training.place import Place


def walked(place: Place, global_batch: int, steps: int) -> list[int]:
    """Where the steps begin, as the loop counts them."""
    found = []
    while place.step < steps:
        found.append(place.position)
        place.advance(global_batch)
    return found


def test_a_changed_batch_goes_on_where_the_stream_is() -> None:
    place = Place(0, 0)
    assert walked(place, 8, 3) == [0, 8, 16]
    assert (place.step, place.position) == (3, 24)
    assert list(place.starts(12, 6)) == [24, 36, 48] == walked(place, 12, 6)
    assert list(place.starts(12, 6)) == []


def test_what_was_not_finite_is_left_out_and_the_rest_comes_again() -> None:
    """Steps of 8 from a checkpoint at 16; those at 32 and 40 were bad, then those at 48 and 56 were, too."""
    first = Place(6, 48).gone_back(2, 16, bad=32)
    assert list(first.starts(8, 7)) == [16, 24, 48, 56, 64]
    assert walked(first, 8, 6) == [16, 24, 48, 56]
    second = first.gone_back(2, 16, bad=48)
    assert list(second.starts(8, 6)) == [16, 24, 64, 72] == walked(second, 8, 6)
    assert Place(4, 32).gone_back(2, 16, bad=16) == Place(2, 32, {16: 32})
