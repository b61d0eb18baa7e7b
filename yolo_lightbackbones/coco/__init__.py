"""MS-COCO: the official evaluation of predictions, and a checked data set folder."""
