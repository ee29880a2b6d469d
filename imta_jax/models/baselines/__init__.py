"""Networks that MSDNet is compared with: ResNet, DenseNet, GoogLeNet, HydraNet."""
