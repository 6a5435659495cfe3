"""Digits: files, patches and their codebook, splits, drawing; with the real pictures where they are."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from probgram import fit, solve, tasks
from probgram.inference.batches import as_known_answers
from probgram.inference.objective import ObjectiveConfig
from probgram.models import GRAM, GRAMGuide
from probgram.tasks.digits import learn_codes, patches, read_idx, shipped_codes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"the pictures are not at {DATA}")


def write_idx(path: Path, values: np.ndarray) -> None:
    content = (
        bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype("u1").tobytes()
    )
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def drawn(rows: int, seed: int = 0) -> np.ndarray:
    """Pictures of a bar each, grey [rows, 28, 28]."""
    rng = np.random.default_rng(seed)
    result = np.zeros((rows, 28, 28), np.uint8)
    for picture in result:
        row, column, height = rng.integers(2, 12, size=3)
        picture[row : row + height, column : column + 5] = rng.integers(128, 256)
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = drawn(200)
    pictures[150:] = pictures[:50]  # given twice
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", pictures)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(200) % 10)
    return tmp_path


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a-ubyte", "a-ubyte.gz"])
@pytest.mark.parametrize("shape", [(3, 28, 28), (7,), (2, 3)])
def test_idx_files_are_read_packed_or_not(tmp_path, name, shape):
    values = np.random.default_rng(0).integers(256, size=shape)
    write_idx(tmp_path / name, values)
    assert np.array_equal(read_idx(tmp_path / name), values)


def test_files_of_both_parts_are_read_each_with_its_labels(folder):
    write_idx(folder / "train-images-idx3-ubyte", drawn(30, seed=1))
    write_idx(folder / "train-labels-idx1-ubyte", np.full(30, 7))
    task = tasks.Digits(folder)
    assert len(task.pictures) == 230 and (task.labels[200:] == 7).all()
    assert np.array_equal(task.pictures[200:], drawn(30, seed=1))


def test_what_is_no_file_of_pictures_is_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no \\*-images-idx3-ubyte file"):
        tasks.Digits(tmp_path)
    images = tmp_path / "t10k-images-idx3-ubyte"
    for content in (b"", b"\x00\x00\x08", b"PK\x03\x04", b"\x00\x00\x08\x01\x00\x00\x00\x05ab", b"\x1f\x8bxx"):
        images.write_bytes(content)
        with pytest.raises(ValueError, match="t10k-images-idx3-ubyte (is no whole IDX file|cannot be read)"):
            tasks.Digits(tmp_path)
    write_idx(images, drawn(3))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte cannot be read"):
        tasks.Digits(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(4))
    with pytest.raises(ValueError, match="must hold a 28x28 picture for each label"):
        tasks.Digits(tmp_path)
    for labels in (np.array([1, 2, 10]), np.zeros((3, 1))):
        write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels)
        with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte must hold a label from 0 to 9"):
            tasks.Digits(tmp_path)


def test_a_packed_file_with_a_damaged_body_is_one_clear_sentence(folder):
    images = folder / "t10k-images-idx3-ubyte.gz"
    content = images.read_bytes()
    images.write_bytes(content[:20] + b"\xff" * 20 + content[40:])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz cannot be read"):
        tasks.Digits(folder)


def test_a_file_that_is_there_packed_and_unpacked_is_read_once_and_labels_may_be_packed_alone(folder):
    expected = tasks.Digits(folder)
    packed = folder / "t10k-images-idx3-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    for _ in range(2):
        task = tasks.Digits(folder)
        assert np.array_equal(task.pictures, expected.pictures) and np.array_equal(task.labels, expected.labels)
        packed.unlink(missing_ok=True)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_of_few_pictures_one_is_held_out_or_there_are_too_few(tmp_path, rows):
    write_idx(tmp_path / "t10k-images-idx3-ubyte", drawn(rows))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(rows))
    task = tasks.Digits(tmp_path)
    if rows < 2:
        with pytest.raises(ValueError, match=f"holds {rows} different pictures, too few to hold any out"):
            task.examples("test")
    else:
        assert [len(task.examples(split)[0]) for split in ("train", "test")] == [rows - 1, 1]


# -- patches and codes ----------------------------------------------------------------------------------------


def test_a_patch_is_a_number_whose_bits_are_its_pixels():
    picture = np.zeros((28, 28), bool)
    picture[0, 0] = picture[5, 10] = picture[27, 27] = True  # bits 0, 1·4 + 2, 15 of patches 0, 7 + 2, 48
    expected = np.zeros(49, int)
    expected[[0, 9, 48]] = 1, 1 << 6, 1 << 15
    assert patches(picture).tolist() == expected.tolist()
    assert np.array_equal(patches(picture * np.uint8(128)), expected) and not patches(picture * np.uint8(127)).any()


def test_with_every_patch_in_the_codebook_pictures_come_back_exactly():
    pictures = np.random.default_rng(0).random((5, 28, 28)) < 0.3
    task = tasks.Digits(codes=np.unique(patches(pictures)))
    assert np.array_equal(task.picture(task.tokens(pictures)), pictures)
    assert np.array_equal(task.picture(torch.from_numpy(task.tokens(pictures)).to(torch.uint8)), pictures)


def test_a_token_is_the_code_with_the_fewest_differing_pixels():
    codes = np.random.default_rng(0).choice(1 << 16, 20, replace=False)
    task = tasks.Digits(codes=codes)
    picture = np.random.default_rng(1).random((28, 28)) < 0.5
    for patch, token in zip(patches(picture).tolist(), task.tokens(picture).tolist(), strict=True):
        differing = [bin(patch ^ code).count("1") for code in codes.tolist()]
        assert token == differing.index(min(differing))


def test_the_codebook_is_the_same_each_time_and_no_worse_than_the_most_frequent_patches():
    spots = np.random.default_rng(0).random((80, 28, 28)) < 0.05
    given = patches((drawn(80) >= 128) ^ spots)
    codes = learn_codes(given, 24)
    assert np.array_equal(codes, learn_codes(given.reshape(-1)[::-1], 24)) and len(np.unique(codes)) == 24

    def error(book: np.ndarray) -> int:
        return sum(min(bin(p ^ c).count("1") for c in book.tolist()) for p in given.reshape(-1).tolist())

    values, counts = np.unique(given, return_counts=True)
    assert error(codes) < error(values[np.argsort(-counts)][:24])


def test_the_best_codebook_of_two_is_found_where_it_is_obvious():
    """Two clusters around a blank and a full patch: the best pair, by trying all."""
    given = np.array([0] * 9 + [1, 2, 4] * 2 + [65535] * 8 + [65535 - 8] * 3)
    tried = itertools.combinations(np.unique(given).tolist(), 2)
    best = min(tried, key=lambda pair: sum(min(bin(p ^ c).count("1") for c in pair) for p in given.tolist()))
    assert learn_codes(given, 2).tolist() == list(best) == [0, 65535]


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_size_that_no_codebook_has_is_one_clear_sentence(size):
    with pytest.raises(ValueError, match=f"size must be from 2 to the 3 different patches, got {size}"):
        learn_codes(np.array([1, 1, 2, 3]), size)


# -- the task -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional", [False, True])
def test_digits_are_a_task_whose_rows_are_problems_of_their_own(folder, conditional):
    task = tasks.Digits(folder, size=16, conditional=conditional)
    assert isinstance(task, tasks.Task) and (task.length, task.output_size) == (49, 16)
    x, y = task.examples("train")
    known = as_known_answers(task)
    assert known.answers.shape == (len(x), 1, 49) and np.array_equal(known.answers[:, 0], y)
    chosen = ~task._held_out
    labels = task.labels[chosen] if conditional else np.zeros(chosen.sum(), int)
    assert np.array_equal(x, np.repeat(labels[:, None], 49, 1)) and x.max() < task.input_size
    assert np.array_equal(y, task.tokens(task.pictures[chosen]))


def test_equal_pictures_are_on_one_side_of_the_split(folder):
    task = tasks.Digits(folder, size=16)
    sides = [{p.tobytes() for p in task._pictures(split)[0] >= 128} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == round(0.15 * len(sides[0] | sides[1]))
    again, other = tasks.Digits(folder, size=16), tasks.Digits(folder, size=16, seed=1)
    assert np.array_equal(task._held_out, again._held_out) and not np.array_equal(task._held_out, other._held_out)


def test_nobody_knows_what_is_a_right_digit():
    task = tasks.Digits()
    y = np.zeros((3, 49), int)
    for call in (task.verify, task.violations):
        with pytest.raises(tasks.UnknownAnswers, match="what is a right digit cannot be verified"):
            call(task.encode(), y)
    with pytest.raises(tasks.UnknownAnswers, match="not all there are"):
        task.solutions(task.encode())


def test_the_distance_is_that_to_the_nearest_training_picture(folder):
    task = tasks.Digits(folder, size=16)
    train, test = (task.picture(task.examples(split)[1]) for split in ("train", "test"))
    expected = [min((picture != other).mean() for other in train) for picture in test]
    assert task.distance(task.examples("test")[1]) == pytest.approx(expected)
    assert not task.distance(task.examples("train")[1]).any()


def test_problems_are_blank_or_a_label():
    assert not tasks.Digits().encode().any() and not tasks.Digits().encode("").any()
    assert not tasks.Digits().encode(np.zeros(49, int)).any()
    labelled = tasks.Digits(conditional=True)
    assert labelled.encode("3").tolist() == labelled.encode(3).tolist() == [3] * 49
    with pytest.raises(ValueError, match="digits has one problem, the blank one; got 3"):
        tasks.Digits().encode(3)
    for wrong in (None, "", "12", -1, "x", "²"):
        with pytest.raises(ValueError, match="a problem of digits-labelled must be a label from 0 to 9"):
            labelled.encode(wrong)


def test_a_picture_is_drawn_with_two_rows_a_line():
    picture = np.zeros((28, 28), bool)
    picture[0, 0] = picture[1, 1] = picture[26:, 2] = True
    task = tasks.Digits(codes=np.unique(patches(picture)))
    lines = task.decode(task.tokens(picture)).split("\n")
    assert len(lines) == 14 and lines[0] == "▀▄" and lines[-1] == "  █" and not any(lines[1:-1])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"size": 8}, "size says how many codes to learn: it needs a folder"),
        ({"codes": [0.5, 1.0]}, "codes must be at least two integers"),
        ({"codes": [3]}, "codes must be at least two integers"),
        ({"codes": [3, 3]}, "codes must be different numbers of 16 bits"),
        ({"codes": [3, 1 << 16]}, "codes must be different numbers of 16 bits"),
    ],
)
def test_bad_choices_are_one_clear_sentence(choices, message):
    with pytest.raises(ValueError, match=message):
        tasks.Digits(**choices)


def test_without_pictures_there_are_no_examples_and_a_trained_chain_draws_all_the_same():
    task = tasks.from_name("digits")
    assert task.output_size == 128 and repr(task) == "Digits(no data, 128 codes, conditional=False, seed=0)"
    with pytest.raises(ValueError, match="Digits needs the folder of MNIST's files to give examples"):
        task.examples("train")
    with pytest.raises(ValueError, match='split must be "train" or "test"'):
        task.examples("validation")
    chain = GRAM.for_task(task, dim=8, heads=1, hidden=8, refinements=1, transitions=1)
    chain.about = {"task": "digits", "split": "picture"}
    answer = solve(chain, None, width=2, depth=1)
    assert answer.verified is None and "█" in str(answer)
    assert tasks.from_name("digits-labelled").conditional


def test_training_on_digits_needs_no_verification(folder):
    task = tasks.Digits(folder, size=16)
    chain = GRAM.for_task(task, dim=8, heads=1, hidden=8, refinements=1, transitions=1)
    objective = ObjectiveConfig(depth=1, carry=0.0)
    result = fit(chain, GRAMGuide(chain), task, 2, objective=objective, batch=4, progress=False, validate_every=1)
    assert result.finished and "valid_held_out" not in result.history[-1]


# -- the real pictures ----------------------------------------------------------------------------------------


@real
def test_the_shipped_codebook_is_what_the_training_pictures_give():
    task = tasks.Digits(DATA, size=128)
    assert np.array_equal(task.codes, shipped_codes())
    assert np.array_equal(task.codes, tasks.Digits(DATA).codes)
    assert [len(task.examples(split)[0]) for split in ("train", "test")] == [8_500, 1_500]
    assert task.reconstruction_error("train") == pytest.approx(0.0118, abs=1e-4)
    assert task.reconstruction_error("test") == pytest.approx(0.0123, abs=1e-4)


@real
def test_held_out_digits_are_nearer_to_the_training_pictures_than_pieces_of_several():
    task = tasks.Digits(DATA)
    y = task.examples("test")[1][:200]
    pieces = np.random.default_rng(0).permuted(y, axis=0)  # each patch from another digit
    assert 0.04 < task.distance(y).mean() < 0.07 < 0.08 < task.distance(pieces).mean()
