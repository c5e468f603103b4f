"""The vision part of a transformers model: pixel values in, rows of embeddings out.

Hides the differences between releases and families. Knows neither pictures nor prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import ImageFeatures, VisionPart

_TEXT_INPUTS = ('input_ids', 'attention_mask', 'token_type_ids', 'mm_token_type_ids')


class TransformersVision(VisionPart):
    """See `VisionPart`.

    Args:
        model: A loaded transformers model with `get_image_features`. Its language model may be missing (on
            the device `meta`).
    """

    def __init__(self, model: Any):
        self.config = model.config
        self.model = model
        weight = next(p for p in model.parameters() if p.device.type != 'meta')
        self.device, self._dtype = weight.device, weight.dtype

    @classmethod
    def of(cls, model: Any) -> TransformersVision | None:
        """Return the vision part of a model; None if it has none."""
        if getattr(model.config, 'vision_config', None) is None:
            return None
        return cls(model) if callable(getattr(model, 'get_image_features', None)) else None

    def features(self, inputs: Mapping[str, Any]) -> ImageFeatures:
        taken = inspect.signature(self.model.get_image_features).parameters
        output = self.model.get_image_features(
            **{
                name: value.to(self.device, self._dtype)
                if value.is_floating_point()
                else value.to(self.device)
                for name, value in inputs.items()
                if name in taken and name not in _TEXT_INPUTS
            }
        )
        pictures = getattr(output, 'pooler_output', output)  # releases before 5 return the rows themselves
        return ImageFeatures(
            [rows.reshape(-1, rows.shape[-1]) for rows in pictures],
            list(getattr(output, 'deepstack_features', None) or ()),
        )

    def positions(self, inputs: Mapping[str, Any], row_id: int) -> np.ndarray | None:
        import torch

        find = getattr(self.model, 'get_rope_index', None) or getattr(
            getattr(self.model, 'model', None), 'get_rope_index', None
        )
        if find is None or 'image_grid_thw' not in inputs:
            return None
        ids = torch.cat([inputs['input_ids'], inputs['input_ids'].new_zeros(1, 1)], dim=1)
        options = {
            'input_ids': ids,
            'image_grid_thw': inputs['image_grid_thw'],
            'attention_mask': torch.ones_like(ids),
            'mm_token_type_ids': torch.eq(ids, row_id).int(),
        }
        taken = inspect.signature(find).parameters
        positions = find(**{name: value for name, value in options.items() if name in taken})[0]
        return positions[:, 0].cpu().numpy()
