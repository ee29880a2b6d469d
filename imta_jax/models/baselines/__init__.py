"""Baselines of the paper: ResNet, DenseNet, GoogLeNet and HydraNet, as backbones."""
