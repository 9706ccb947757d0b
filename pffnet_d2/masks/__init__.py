"""One object, many objects, label maps: what prediction, evaluation and export exchange. Numpy only."""
