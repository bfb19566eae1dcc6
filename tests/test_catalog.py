from dataclasses import replace

import pytest

from tinycifar import augment, catalog, models, recipes
from tinycifar.formats import onnx_file
from tinycifar.summary import summarize


@pytest.mark.parametrize("name", models.MODELS)
def test_the_catalog_has_the_size_of_every_model(name):
    model = models.build(name)
    size = summarize(model)
    residual = [
        index
        for index, block in enumerate(model)
        if isinstance(block, models.MirroredBottleneck) or getattr(block, "residual", False)
    ]
    assert catalog.ARCHITECTURES[name] == catalog.Architecture(
        size.parameters, models.written_out(model), size.macs, models.image_sizes(name), tuple(residual)
    )


def test_the_catalog_has_the_names_of_all_models_and_augmentations_in_their_order():
    assert tuple(catalog.ARCHITECTURES) == tuple(models.MODELS)
    assert tuple(augment.AUGMENTATIONS) == catalog.AUGMENTATIONS


def test_the_catalog_has_the_types_of_numbers_in_int8_files():
    assert tuple(onnx_file.VARIANTS) == catalog.INT8_VARIANTS


def test_a_recipe_may_name_models_and_augmentations_that_a_program_adds(monkeypatch):
    class Small(models.NanoNet):
        IMAGE_SIZES = range(16, 33, 16)

    monkeypatch.setitem(models.MODELS, "small", Small)
    monkeypatch.setitem(augment.AUGMENTATIONS, "own", augment.AUGMENTATIONS["none"])
    recipe = replace(recipes.get("minute"), model="small", augmentation="own")
    assert isinstance(recipe.build(), Small)
    with pytest.raises(ValueError, match="image_size must lie between 16 and 32 in steps of 16 for small, not be 24"):
        replace(recipe, image_size=24)
