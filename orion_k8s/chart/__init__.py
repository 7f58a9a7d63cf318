"""Small commands that the chart's pods run beside Orion's own."""
