"""Result files, and what is made of them: tables, pictures, comparisons, the table of README.md.
Imports suite and measure.settings; gpu, tools and the command line may import it."""
