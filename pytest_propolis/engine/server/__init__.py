"""The Propolis server API: request queue, state driver, publisher, serial port."""
