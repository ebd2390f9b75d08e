"""The networks of the zoo: small variants with random weights, and a batch of inputs for each.

A name tells the source and the network: `torchvision/resnet18`. Nothing is downloaded, and nothing is imported before a
network is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

BATCH = 2
VOCABULARY, TOKENS, PIXELS = 256, 12, 32


@dataclass(frozen=True)
class Specimen:
    """How to make a network and its inputs.

    Attributes:
        make: returns the network.
        inputs: returns a batch of inputs.
        train: whether it returns outputs in training mode without further arguments, such as targets.
    """

    make: Callable[[], Any]
    inputs: Callable[[], Any]
    train: bool = True


def _images(*sides: int, batch: int = BATCH) -> Any:
    import torch

    return torch.randn(batch, 3, *sides)


# torchvision


def _torchvision(name: str, settings: dict[str, Any]) -> Any:
    from torchvision import models

    network = models.get_model(name, weights=None, **settings)
    if name.startswith("squeezenet"):  # its last layer is drawn so small that WT would take it whole, before a ReLU
        network.classifier[1].reset_parameters()
    return network


def _vision(name: str, *sides: int, train: bool = True, **settings: Any) -> tuple[str, Specimen]:
    return f"torchvision/{name}", Specimen(partial(_torchvision, name, settings), partial(_images, *sides), train)


def _detector(name: str, side: int, **settings: Any) -> tuple[str, Specimen]:
    settings = {"weights_backbone": None, "num_classes": 3, **settings}
    return _vision(name, side, side, train=False, **settings)


def _segmenter(name: str) -> tuple[str, Specimen]:
    return _vision(name, 64, 64, weights_backbone=None, num_classes=5)


def _multiscale(name: str) -> Any:
    """MViT for clips of 4 x 64 x 64; the builders' 16 x 224 x 224 take minutes."""
    from unittest import mock

    from torchvision.models.video import mvit

    made, small = mvit._mvit, {"spatial_size": (64, 64), "temporal_size": 4}
    with mock.patch.object(mvit, "_mvit", lambda **settings: made(**{**settings, **small})):
        return vars(mvit)[name](num_classes=10)


def _optical_flow() -> Any:
    return _images(128, 128), _images(128, 128)


TORCHVISION = dict(
    [
        *(
            _vision(name, 64, 64, num_classes=10)
            for name in (
                "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "mnasnet0_5",
                "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
                "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn",
                "wide_resnet50_2",
            )
        ),
        _vision("googlenet", 64, 64, num_classes=10, aux_logits=False, init_weights=False),
        _vision("inception_v3", 96, 96, num_classes=10, aux_logits=False, init_weights=False),
        _vision("maxvit_t", 224, 224, num_classes=10),
        _vision("vit_b_16", 64, 64, num_classes=10, image_size=64),
        *map(_segmenter, ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50")),
        _segmenter("lraspp_mobilenet_v3_large"),
        _detector("fasterrcnn_mobilenet_v3_large_320_fpn", 96, min_size=96, max_size=96),
        _detector("fasterrcnn_resnet50_fpn", 96, min_size=96, max_size=96),
        _detector("fcos_resnet50_fpn", 96, min_size=96, max_size=96, score_thresh=0.0),
        _detector(
            "keypointrcnn_resnet50_fpn", 96, min_size=96, max_size=96, num_classes=2, box_score_thresh=0.0,
            box_detections_per_img=4,
        ),
        _detector("maskrcnn_resnet50_fpn", 96, min_size=96, max_size=96),
        _detector("retinanet_resnet50_fpn", 96, min_size=96, max_size=96),
        _detector("ssd300_vgg16", 300),
        _detector("ssdlite320_mobilenet_v3_large", 320),
        *(_vision(name, 8, 32, 32, num_classes=10) for name in ("mc3_18", "r2plus1d_18", "r3d_18")),
        _vision("s3d", 16, 224, 224, num_classes=10),
        _vision("swin3d_t", 4, 64, 64, num_classes=10),
    ]
)  # fmt: skip
for _name in ("mvit_v1_b", "mvit_v2_s"):
    TORCHVISION[f"torchvision/{_name}"] = Specimen(partial(_multiscale, _name), partial(_images, 4, 64, 64))
TORCHVISION["torchvision/raft_small"] = Specimen(partial(_torchvision, "raft_small", {}), _optical_flow)


# timm


def _timm(name: str, settings: dict[str, Any]) -> Any:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **settings)


def _timm_entry(name: str, side: int = 224, **settings: Any) -> tuple[str, Specimen]:
    return f"timm/{name}", Specimen(partial(_timm, name, settings), partial(_images, side, side))


TIMM = dict(
    [
        _timm_entry("vit_tiny_patch16_224", 64, img_size=64),
        _timm_entry("deit_tiny_patch16_224", 64, img_size=64),
        _timm_entry("eva02_tiny_patch14_224", 56, img_size=56),
        _timm_entry("swin_tiny_patch4_window7_224"),
        _timm_entry("mixer_s32_224"),
        _timm_entry("resmlp_12_224"),
        _timm_entry("poolformer_s12", 64),
        _timm_entry("convnextv2_atto", 64),
        _timm_entry("convmixer_768_32", 64),
        _timm_entry("levit_128s"),
        _timm_entry("xcit_nano_12_p16_224", 64, img_size=64),
        _timm_entry("cait_xxs24_224", 64, img_size=64),
        _timm_entry("pit_ti_224"),
        _timm_entry("mobilevit_xxs", 64),
        _timm_entry("edgenext_xx_small", 64),
        _timm_entry("ghostnet_050", 64),
        _timm_entry("hrnet_w18_small", 64),
        _timm_entry("fastvit_t8", 64),
        _timm_entry("repvgg_a0", 64),
    ]
)


# transformers

_SMALL = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
_ENCODER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_GROUPED = {**_ENCODER, "num_key_value_heads": 2}
_VISION = {**_ENCODER, "image_size": PIXELS, "patch_size": 8}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _transformers(network: str, config: str, settings: dict[str, Any]) -> Any:
    import transformers

    made = vars(transformers).get(config) or getattr(transformers, config)
    return getattr(transformers, network)(made(**settings))


def _tokens() -> dict[str, Any]:
    """Ids and an attention mask: the second text is padded."""
    import torch

    ids = torch.randint(3, VOCABULARY, (BATCH, TOKENS))
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    mask[1, -3:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def _two_texts() -> dict[str, Any]:
    return _tokens() | {"decoder_input_ids": _tokens()["input_ids"]}


def _pixel_values() -> dict[str, Any]:
    return {"pixel_values": _images(PIXELS, PIXELS)}


def _text_and_image() -> dict[str, Any]:
    return _tokens() | _pixel_values()


def _spectrogram() -> dict[str, Any]:
    import torch

    return {"input_features": torch.randn(BATCH, 20, 64)}


def _waveform() -> dict[str, Any]:
    import torch

    return {"input_values": torch.randn(BATCH, 800)}


def _clip() -> Any:
    import transformers

    text, vision = _SMALL | _ENCODER | _SPECIAL, _VISION
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def _whisper_encoder() -> Any:
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=20, d_model=64, encoder_layers=2, decoder_layers=1, max_source_positions=32,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, **_SPECIAL,
    )  # fmt: skip
    return transformers.WhisperModel(config).get_encoder()


def _hf(
    name: str, network: str, config: str, settings: dict[str, Any], inputs: Callable[[], Any] = _tokens
) -> tuple[str, Specimen]:
    return f"transformers/{name}", Specimen(partial(_transformers, network, config, settings), inputs)


_BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, **_SMALL, **_SPECIAL, "decoder_start_token_id": 2,
}  # fmt: skip
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, **_SPECIAL}
_OPT = {"ffn_dim": 128, "word_embed_proj_dim": 64, **_ENCODER}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
_CONVOLUTIONS = {"conv_dim": (32, 32), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
_DISTIL = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
_SWIN = {
    "image_size": PIXELS,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
}
_MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}

TRANSFORMERS = dict(
    [
        _hf("bert", "BertForSequenceClassification", "BertConfig", _SMALL | _ENCODER),
        _hf("roberta", "RobertaForMaskedLM", "RobertaConfig", _SMALL | _ENCODER | _SPECIAL),
        _hf("distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", _SMALL | _DISTIL),
        _hf("albert", "AlbertForSequenceClassification", "AlbertConfig", _SMALL | _ENCODER | {"embedding_size": 32}),
        _hf("electra", "ElectraForPreTraining", "ElectraConfig", _SMALL | _ENCODER | {"embedding_size": 32}),
        _hf("deberta_v2", "DebertaV2ForSequenceClassification", "DebertaV2Config", _SMALL | _ENCODER),
        _hf("gpt2", "GPT2LMHeadModel", "GPT2Config", _GPT2),
        _hf("opt", "OPTForCausalLM", "OPTConfig", _SMALL | _OPT | _SPECIAL),
        _hf("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL | _ENCODER | _SPECIAL),
        _hf("llama", "LlamaForCausalLM", "LlamaConfig", _SMALL | _GROUPED | _SPECIAL),
        _hf("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _SMALL | _GROUPED | _SPECIAL),
        _hf("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _SMALL | _GROUPED | _SPECIAL | {"head_dim": 16}),
        _hf("mistral", "MistralForCausalLM", "MistralConfig", _SMALL | _GROUPED | _SPECIAL),
        _hf("mixtral", "MixtralForCausalLM", "MixtralConfig", _SMALL | _GROUPED | _SPECIAL | _MIXTURE),
        _hf("gemma", "GemmaForCausalLM", "GemmaConfig", _SMALL | _GROUPED | _SPECIAL | {"head_dim": 16}),
        _hf("phi", "PhiForCausalLM", "PhiConfig", _SMALL | _ENCODER | _SPECIAL),
        _hf("t5", "T5ForConditionalGeneration", "T5Config", _T5 | {"decoder_start_token_id": 0}, _two_texts),
        _hf("bart", "BartForConditionalGeneration", "BartConfig", _BART, _two_texts),
        _hf("vit", "ViTForImageClassification", "ViTConfig", _VISION, _pixel_values),
        _hf("deit", "DeiTForImageClassification", "DeiTConfig", _VISION, _pixel_values),
        _hf("dinov2", "Dinov2ForImageClassification", "Dinov2Config", _VISION, _pixel_values),
        _hf("swin", "SwinForImageClassification", "SwinConfig", _SWIN, _pixel_values),
        _hf("wav2vec2", "Wav2Vec2Model", "Wav2Vec2Config", {"vocab_size": 32, **_ENCODER, **_CONVOLUTIONS}, _waveform),
        ("transformers/whisper_encoder", Specimen(_whisper_encoder, _spectrogram)),
        ("transformers/clip", Specimen(_clip, _text_and_image)),
    ]
)


# Shapes of our own, in zoo_own.py


def _own(name: str) -> Any:
    import zoo_own

    return zoo_own.NETWORKS[name][0]()


def _own_inputs(name: str) -> Any:
    import zoo_own

    return zoo_own.NETWORKS[name][1]()


_OWN = (
    "lstm", "gru", "transformer", "transformer_encoder", "unet_1d", "unet_3d", "tied_embeddings", "grouped",
    "two_inputs",
)  # fmt: skip
OWN = {f"own/{name}": Specimen(partial(_own, name), partial(_own_inputs, name)) for name in _OWN}

NETWORKS: dict[str, Specimen] = TORCHVISION | TIMM | TRANSFORMERS | OWN
