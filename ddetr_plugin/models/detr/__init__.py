"""mmdet's DETR with parts of ours."""
