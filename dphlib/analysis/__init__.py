"""From records to numbers: claims, studies, retention, regime, tables."""
