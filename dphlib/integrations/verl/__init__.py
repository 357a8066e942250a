"""The method in verl's trainer: the stored answers, the loss, the plug-in."""
