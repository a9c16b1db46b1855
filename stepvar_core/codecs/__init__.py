"""From pictures to codes and back."""
