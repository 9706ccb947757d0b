"""How good a segmentation is: the field's metrics on label maps, and Detectron2 evaluators around them."""
