"""AP over epochs of DETR and Deformable DETR, trained alike; see run.py."""
