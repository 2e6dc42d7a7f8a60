"""Masks as other tools keep them: COCO, LabelMe, CVAT and Label Studio, read and written without their packages."""
