"""SepNet for Ultralytics YOLO. Keep imports out of this file: a look-up of a YAML's name should not import torch."""
