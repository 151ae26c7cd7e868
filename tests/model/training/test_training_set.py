from dataclasses import replace

import numpy as np
import pytest
import torch

from model.photo_folder import DatasetError
from model.training.augmentation import Augmentation
from model.training.config import AugmentationConfig
from model.training.preparation import PreparedFolder, read_crop
from model.training.training_set import AugmentedCrops, Draw, PersonBatches, split_identities


def test_nobody_is_in_two_sets(colours: PreparedFolder) -> None:
    split = split_identities([colours], validation_people=3, test_people=4, seed=5)

    sets = [set(part.people) for part in (split.train, split.validation, split.test)]
    assert [len(people) for people in sets] == [5, 3, 4]
    assert len(set.union(*sets)) == 12
    assert len(split.train.paths) == 30


def test_another_seed_keeps_other_people_out(colours: PreparedFolder) -> None:
    kept_out = {
        split_identities([colours], validation_people=3, test_people=0, seed=seed).validation.people
        for seed in range(5)
    }

    assert len(kept_out) > 1


def test_somebody_in_two_folders_is_one_person_and_kept_out_of_both(colours: PreparedFolder) -> None:
    renamed = replace(
        colours, photos=tuple(replace(photo, person=photo.person.upper().replace(" ", "_")) for photo in colours.photos)
    )

    split = split_identities([colours, renamed], validation_people=3, test_people=0, seed=5)

    assert len(split.train.people) == 9
    assert len(split.validation.paths) == 3 * 12


def test_flagged_and_refused_photos_are_left_out(colours: PreparedFolder) -> None:
    photos = list(colours.photos)
    photos[0] = replace(photos[0], flag="looks like person 1")
    photos[1] = replace(photos[1], crop="", refused="no face was found")

    split = split_identities([replace(colours, photos=tuple(photos))], validation_people=0, test_people=0, seed=0)

    assert len(split.train.paths) == 70


def test_who_has_one_photo_takes_nobodys_place(colours: PreparedFolder) -> None:
    few = {"person 1", "person 4", "person 7"}
    photos = tuple(
        replace(photo, flag="far from own center")
        if photo.person in few and not photo.file.endswith("/0.jpg")
        else photo
        for photo in colours.photos
    )
    poor = replace(colours, photos=photos)

    for seed in range(4):
        split = split_identities([poor], validation_people=3, test_people=2, seed=seed)
        people = [part.people for part in (split.train, split.validation, split.test)]
        assert [len(names) for names in people] == [4, 3, 2]
        assert not few & set().union(*people)


def test_one_photo_in_each_of_two_folders_are_two(colours: PreparedFolder) -> None:
    single = replace(
        colours,
        photos=tuple(
            replace(photo, flag="" if photo.file.endswith("/0.jpg") else "far from own center")
            for photo in colours.photos
        ),
    )

    split = split_identities([single, replace(single)], validation_people=2, test_people=0, seed=0)

    assert len(split.train.paths) + len(split.validation.paths) == 24
    assert len(split.validation.people) == 2


def test_folders_of_two_extractors_are_refused(colours: PreparedFolder) -> None:
    narrow = replace(colours, embeddings=colours.embeddings[:, :4])

    with pytest.raises(DatasetError, match="embeddings of 4 and 8 numbers"):
        split_identities([colours, narrow], validation_people=0, test_people=0, seed=0)


def test_keeping_everybody_out_is_refused(colours: PreparedFolder) -> None:
    with pytest.raises(DatasetError, match="fewer than two people remain"):
        split_identities([colours], validation_people=11, test_people=0, seed=0)


def batches(colours: PreparedFolder, **place: int) -> PersonBatches:
    crops = split_identities([colours], validation_people=0, test_people=0, seed=0).train
    return PersonBatches(crops, people=4, photos=3, steps=range(2, 7), seed=9, **place)


def test_a_batch_has_so_many_people_and_so_many_photos_of_each(colours: PreparedFolder) -> None:
    crops = split_identities([colours], validation_people=0, test_people=0, seed=0).train

    for batch in batches(colours):
        rows = [draw.row for draw in batch]
        assert len(set(rows)) == 12
        assert sorted(np.unique(crops.labels[rows], return_counts=True)[1].tolist()) == [3, 3, 3, 3]


def test_a_batch_depends_on_its_step_alone(colours: PreparedFolder) -> None:
    (*_, last) = batches(colours)

    assert batches(colours).batch(6) == last
    assert batches(colours).batch(5) != last


def test_processes_share_a_batch(colours: PreparedFolder) -> None:
    whole = batches(colours).batch(3)
    parts = [batches(colours, rank=rank, processes=2).batch(3) for rank in (0, 1)]

    assert sorted(parts[0] + parts[1], key=lambda draw: draw.seed) == sorted(whole, key=lambda draw: draw.seed)
    assert len(parts[0]) == len(parts[1]) == 6


def test_a_batch_that_does_not_divide_is_refused(colours: PreparedFolder) -> None:
    with pytest.raises(DatasetError, match="does not divide by 5"):
        batches(colours, rank=0, processes=5)


def test_a_draw_always_gives_the_same_crop(colours: PreparedFolder) -> None:
    crops = split_identities([colours], validation_people=0, test_people=0, seed=0).train
    dataset = AugmentedCrops(crops, Augmentation(AugmentationConfig(affine=1, colour=1, degraded=1)))

    first, label, target = dataset[Draw(7, 1)]

    torch.testing.assert_close(dataset[Draw(7, 1)][0], first, rtol=0, atol=0)
    assert not torch.equal(dataset[Draw(7, 2)][0], first)
    assert (first.shape, first.dtype, label) == ((3, 112, 112), torch.uint8, int(crops.labels[7]))
    np.testing.assert_array_equal(target.numpy(), crops.targets[7])


def test_augmentation_that_is_off_changes_nothing(colours: PreparedFolder) -> None:
    crops = split_identities([colours], validation_people=0, test_people=0, seed=0).train
    off = Augmentation(AugmentationConfig(flip=0, affine=0, colour=0, degraded=0))

    pixels, _, _ = AugmentedCrops(crops, off)[Draw(0, 1)]

    np.testing.assert_array_equal(pixels.numpy().transpose(1, 2, 0), read_crop(crops.paths[0]))


def test_every_degradation_keeps_shape_and_type() -> None:
    augmentation = Augmentation(AugmentationConfig(flip=0, affine=0, colour=0, degraded=1))
    crop = torch.randint(0, 256, (3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    torch.manual_seed(0)
    changed = [augmentation(crop) for _ in range(40)]

    assert {(tuple(copy.shape), copy.dtype) for copy in changed} == {((3, 112, 112), torch.uint8)}
    assert all(not torch.equal(copy, crop) for copy in changed)
