"""The one schema of a run: pydantic models, frozen and closed, free of torch.

A new section is a file here and a field of :class:`Recipe`; a new kind of a union is a class with a `kind`
and a line in its table (`GATES`, `FORGET_TERMS`, ...), which the contract tests then demand.
"""

from grun.config.adapter import AdapterConfig, GateConfig, LinearGateConfig, Mlp3GateConfig, Mlp5GateConfig, NoGateConfig
from grun.config.augmentation import AugmentationConfig
from grun.config.base import Config, is_uri
from grun.config.cache import CacheConfig
from grun.config.calibration import CalibrationConfig
from grun.config.cluster import ClusterConfig
from grun.config.composition import CompositionConfig, MaxGateConfig, ScaledConfig, SumConfig
from grun.config.data import DataConfig, HubData, JsonlData, PromptConfig, TestbedData, TofuData
from grun.config.evaluation import EvaluationConfig, PromotionConfig
from grun.config.ledger import LedgerConfig
from grun.config.model import BaseVariant, ModelConfig, TaughtModelConfig, VariantKind
from grun.config.objective import (
    CeuConfig,
    DpoConfig,
    ForgetTermConfig,
    GradDiffConfig,
    IdkConfig,
    InvarianceConfig,
    NegativeConfig,
    NpoConfig,
    ObjectiveConfig,
    RetainCeConfig,
    RetainHiddenConfig,
    RetainKlConfig,
    RetainTermConfig,
    RmuConfig,
    SatImpConfig,
    SimNpoConfig,
    TnpoConfig,
    UndialConfig,
    WgaConfig,
    WtnpoConfig,
)
from grun.config.recipe import Recipe, RequestConfig, merge, read_recipe_file
from grun.config.serving import ServingConfig
from grun.config.sweep import SweepConfig
from grun.config.tracking import TrackingConfig
from grun.config.train import TrainConfig

__all__ = [
    "AdapterConfig",
    "AugmentationConfig",
    "BaseVariant",
    "CacheConfig",
    "CalibrationConfig",
    "CeuConfig",
    "ClusterConfig",
    "CompositionConfig",
    "Config",
    "DataConfig",
    "DpoConfig",
    "EvaluationConfig",
    "ForgetTermConfig",
    "GateConfig",
    "GradDiffConfig",
    "HubData",
    "IdkConfig",
    "InvarianceConfig",
    "JsonlData",
    "LedgerConfig",
    "LinearGateConfig",
    "MaxGateConfig",
    "Mlp3GateConfig",
    "Mlp5GateConfig",
    "ModelConfig",
    "NegativeConfig",
    "NoGateConfig",
    "NpoConfig",
    "ObjectiveConfig",
    "PromotionConfig",
    "PromptConfig",
    "Recipe",
    "RequestConfig",
    "RetainCeConfig",
    "RetainHiddenConfig",
    "RetainKlConfig",
    "RetainTermConfig",
    "RmuConfig",
    "SatImpConfig",
    "ScaledConfig",
    "ServingConfig",
    "SimNpoConfig",
    "SumConfig",
    "SweepConfig",
    "TaughtModelConfig",
    "TestbedData",
    "TnpoConfig",
    "TofuData",
    "TrackingConfig",
    "TrainConfig",
    "UndialConfig",
    "VariantKind",
    "WgaConfig",
    "WtnpoConfig",
    "is_uri",
    "merge",
    "read_recipe_file",
]
