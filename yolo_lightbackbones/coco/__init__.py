"""MS-COCO: the official evaluation of predictions, and the check of a data set folder."""
