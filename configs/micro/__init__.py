"""Trainings of the micro checkpoints (common.py says how), and the experiment on micro-DreamBench. configs/micro.py is the main job."""
