"""What a SAELens `cfg.json` says about an autoencoder, or one sentence why it is not understood.

Two generations of the format are read. Since version 6 the file holds the fields of one architecture and a `metadata`
block; before, everything is flat, under older names, together with how it was trained. Whatever could change what the
autoencoder computes and is not known here is refused: a wrong feature looks like any other number. No tensors here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import InputError, did_you_mean

ARCHITECTURES = ("standard", "gated", "topk", "jumprelu")
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
DTYPES = ("float32", "float64", "float16", "bfloat16")
# Ways in which TransformerLens rewrites weights so that activations differ; the model's basis is then "folded".
FOLDING = ("fold_ln", "center_writing_weights", "fold_value_biases")
_FIELDS = {
    *("architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations"),
    *("reshape_activations", "metadata", "k", "rescale_acts_by_decoder_norm"),
}
_TRAINING = {"decoder_init_norm", "aux_loss_coefficient", "l1_coefficient", "l0_coefficient"}  # since version 6
_UNSUPPORTED = {
    *("abstopk", "batchtopk", "matryoshka_batchtopk", "matching_pursuit", "temporal"),
    *("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
}
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


@dataclass(frozen=True)
class SaeConfig:
    """An autoencoder's shape and conventions.

    Attributes:
        d_in, d_sae: widths of what it reads and of its features.
        hook_name: where in a model it was trained; the name as written, legacy TransformerLens names included.
        k: features kept per input, of a top-k autoencoder.
        apply_b_dec_to_input: whether b_dec is taken off the input before it is encoded.
        normalize_activations: done to each input as it is read, and undone at the output.
        rescale_by_decoder_norm: top-k only: features are compared and kept in units of what they write.
        flatten_heads: the hook gives `[..., head, d_head]`, the autoencoder reads all heads side by side.
        trained_on: basis of the model it was trained on, "raw" or "folded"; None when the file does not say.
        metadata: the rest of what the file says.
    """

    architecture: str
    d_in: int
    d_sae: int
    hook_name: str
    k: int | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    rescale_by_decoder_norm: bool = False
    flatten_heads: bool = False
    trained_on: str | None = None
    dtype: str = "float32"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As SAELens 6 writes it."""
        known = {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": self.dtype,
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": self.normalize_activations,
            "reshape_activations": "hook_z" if self.flatten_heads else "none",
            "metadata": {"sae_lens_version": "6.0.0", **self.metadata, "hook_name": self.hook_name},
        }
        if self.architecture == "topk":
            known |= {"k": self.k, "rescale_acts_by_decoder_norm": self.rescale_by_decoder_norm}
        if self.trained_on is not None:
            known["metadata"]["model_from_pretrained_kwargs"] = dict.fromkeys(FOLDING, self.trained_on == "folded")
        return known


def parse_config(values: Any, *, where: str) -> SaeConfig:
    """The configuration that `cfg.json` holds.

    Args:
        where: what to call the file in a message.

    Raises:
        InputError: something that decides what the autoencoder computes is missing, contradictory or not known here.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} holds {type(values).__name__}, not an object of settings; is it an SAE's cfg.json?")
    given: dict[str, Any] = {_OLD_NAMES.get(str(key), str(key)): value for key, value in values.items()}
    flat = "metadata" not in given
    metadata = {k: v for k, v in given.items() if k not in _FIELDS} if flat else given["metadata"]
    if not isinstance(metadata, Mapping):
        raise InputError(f"{where}: metadata is {metadata!r}, not an object; is it an SAE's cfg.json?")
    if not flat and _TRAINING & given.keys():
        raise InputError(
            f"{where} is a checkpoint of training ({min(_TRAINING & given.keys())}), whose features may be computed "
            "otherwise than those of the finished autoencoder; save it with SAELens' save_inference_model."
        )
    architecture, k = _architecture(given, where, flat=flat)
    if not flat:
        unknown = sorted(given.keys() - _FIELDS)
        if unknown:
            raise InputError(
                f"{where}: the setting {unknown[0]!r} is not known here, so what the autoencoder computes is not "
                f"either.{did_you_mean(unknown[0], _FIELDS)}"
            )
    _refuse(given, metadata, architecture, where)
    hook_name = metadata.get("hook_name")
    if not isinstance(hook_name, str) or not hook_name:
        raise InputError(f"{where} names no hook point (hook_name), so it cannot be applied; add the one it is for.")
    return SaeConfig(
        architecture=architecture,
        d_in=_whole(given, "d_in", where),
        d_sae=_whole(given, "d_sae", where),
        hook_name=hook_name,
        k=k,
        apply_b_dec_to_input=_flag(given, "apply_b_dec_to_input", True, where),
        normalize_activations=_normalisation(given.get("normalize_activations"), where),
        rescale_by_decoder_norm=_flag(given, "rescale_acts_by_decoder_norm", False, where),
        flatten_heads=_flattened(given.get("reshape_activations"), hook_name, where),
        trained_on=_basis(metadata),
        dtype=_dtype(given.get("dtype"), where),
        metadata={key: value for key, value in metadata.items() if key != "hook_name"},
    )


def _architecture(given: Mapping[str, Any], where: str, *, flat: bool) -> tuple[str, int | None]:
    architecture = given.get("architecture", "standard" if flat else None)
    activation = given.get("activation_fn", "relu")
    options = given.get("activation_fn_kwargs") or {}
    if not isinstance(options, Mapping):
        raise InputError(f"{where}: activation_fn_kwargs is {options!r}, not an object of settings; correct it.")
    if activation == "topk" and architecture in ("standard", "topk"):  # how files before version 6 say it
        architecture, k = "topk", options.get("k", given.get("k"))
    elif architecture in ARCHITECTURES and activation == "relu":
        k = given.get("k")
    elif architecture in ARCHITECTURES:
        raise InputError(f"{where}: the activation function {activation!r} is not known here; relu and topk are.")
    else:
        # a name that SAELens knows is no slip of the pen for another one
        hint = "" if str(architecture) in _UNSUPPORTED else did_you_mean(str(architecture), ARCHITECTURES)
        raise InputError(
            f"{where}: the architecture {architecture!r} is not known here.{hint} Known: {', '.join(ARCHITECTURES)}."
        )
    if architecture != "topk":
        return architecture, None
    k = options.get("k") if k is None else k
    d_sae = _whole(given, "d_sae", where)
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= d_sae:
        raise InputError(f"{where}: a top-k autoencoder of {d_sae} features needs k between 1 and {d_sae}, not {k!r}.")
    return architecture, k


def _refuse(given: Mapping[str, Any], metadata: Mapping[str, Any], architecture: str, where: str) -> None:
    """What is known and not supported."""
    if given.get("rescale_acts_by_decoder_norm") and architecture != "topk":
        raise InputError(f"{where}: rescale_acts_by_decoder_norm is only known of top-k autoencoders.")
    if given.get("finetuning_scaling_factor"):
        raise InputError(f"{where}: finetuning_scaling_factor is on, which is not supported; fold it into W_dec.")
    if metadata.get("hook_head_index") is not None:
        raise InputError(
            f"{where}: trained on head {metadata['hook_head_index']} alone (hook_head_index), which is not supported; "
            "use one trained on all heads."
        )
    out = metadata.get("hook_name_out")
    if out not in (None, metadata.get("hook_name")):
        raise InputError(f"{where}: reads {metadata.get('hook_name')!r} and predicts {out!r}; transcoders are no SAEs.")


def _normalisation(value: Any, where: str) -> str:
    if value in (None, False):
        return "none"
    if value is True or value == "expected_average_only_in":
        raise InputError(
            f"{where}: normalize_activations is {value!r}, which needs a factor that the file does not hold; save the "
            "autoencoder with it folded into the weights (SAELens does so at the end of training)."
        )
    if value not in NORMALISATIONS:
        raise InputError(f"{where}: normalize_activations {value!r} is not known here.")
    return value


def _flattened(value: Any, hook_name: str, where: str) -> bool:
    is_z = hook_name.endswith("hook_z")
    if value not in (None, "none", "hook_z"):
        raise InputError(f"{where}: reshape_activations {value!r} is not known here.")
    if value == "hook_z" and not is_z:
        raise InputError(f"{where}: reshape_activations is 'hook_z', but the hook point is {hook_name!r}.")
    return is_z


def _basis(metadata: Mapping[str, Any]) -> str | None:
    """What the file says about the weights of the model; without a word, only the reconstruction can tell."""
    stated = metadata.get("model_from_pretrained_kwargs")
    stated = {key: stated[key] for key in FOLDING if key in stated} if isinstance(stated, Mapping) else {}
    if not stated:
        return None
    return "folded" if any(stated.values()) else "raw"


def _dtype(value: Any, where: str) -> str:
    name = str(value or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"{where}: dtype {value!r} is not known here; known: {', '.join(DTYPES)}.")
    return name


def _whole(given: Mapping[str, Any], key: str, where: str) -> int:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {key} must be a whole number from 1, not {value!r}.")
    return value


def _flag(given: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key} must be true or false, not {value!r}.")
    return value
