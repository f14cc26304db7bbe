"""The catalog: one file of metrics, prices and customers, brought into Lago and OpenMeter."""
