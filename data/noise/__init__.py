"""What happens to speech before it is heard: noise, rooms, levels, telephone, tempo."""
