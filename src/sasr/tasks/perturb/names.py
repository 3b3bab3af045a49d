"""First names: common ones, which can be recognised, and uncommon ones to put in their place.

Women's and men's names are kept apart, so that `she` and `he` still mean the same person. Left out are names that are
also words (Will, May, Grace), places (Austin, Paris) or surnames (Jackson), and names of both women and men (Alex).
"""

from __future__ import annotations

_COMMON_WOMEN = """
Abby Abigail Agnes Aisha Alexandra Alexia Alice Alicia Alison Allison Alyssa Amanda Amelia Amy Andrea Angela Angelina
Anita Ann Anna Annabelle Anne Annie Ariana Audrey Barbara Beatrice Becky Beth Bethany Betsy Betty Brenda Brianna
Bridget Brittany Camila Carla Carmen Carol Caroline Carolyn Catherine Cecilia Celia Chloe Christina Christine Cindy
Claire Clara Claudia Colleen Courtney Cynthia Danielle Debbie Deborah Denise Diana Diane Donna Doris Dorothy Eleanor
Elena Elise Eliza Elizabeth Ella Ellen Emily Emma Erica Erika Esther Eva Evelyn Fiona Gabriela Gabriella Gina Gloria
Greta Gwen Haley Hannah Harriet Helen Ingrid Irene Isabel Isabella Jane Janet Janice Jenna Jennifer Jenny Jessica Jill
Joan Joanna Josephine Judith Judy Julia Juliana Julie Juliet Karen Kate Katherine Kathleen Kathryn Kathy Katie Katrina
Kayla Kelsey Kiara Kimberly Kristen Kristin Kylie Laura Lauren Layla Leah Lena Lila Lillian Linda Lisa Lizzie Lola
Lori Louise Lucia Lucy Lydia Madeline Maggie Mandy Margaret Maria Mariah Marie Marilyn Marissa Marla Marta Martha Mary
Megan Melanie Melinda Melissa Mia Michelle Mindy Miranda Molly Monica Nadia Nancy Naomi Natalia Natalie Natasha Nicole
Nina Nora Olivia Pamela Patricia Paula Peggy Phoebe Polly Priscilla Rachel Rebecca Rhonda Rita Rosa Rosalie Roxanne
Ruth Sabrina Samantha Sandra Sara Sarah Selena Sharon Sheila Shelby Shirley Silvia Sonia Sophia Sophie Stacy Stephanie
Susan Susie Suzanne Sylvia Tabitha Tamara Tammy Tanya Tara Teresa Theresa Tiffany Tina Trisha Valerie Vanessa Vera
Veronica Vicky Wendy Yolanda Yvonne Zoe Zoey
"""
_COMMON_MEN = """
Aaron Abraham Adam Aiden Alan Albert Alejandro Alexander Alfred Allen Alvin Andrew Andy Anthony Antonio Arnold Arthur
Barry Ben Benjamin Bernard Bernie Billy Bob Bobby Boris Brad Bradley Brandon Brendan Brent Brett Brian Bruce Bruno
Bryan Caleb Calvin Carl Carlos Charles Christopher Clarence Claude Colin Connor Craig Curtis Daniel Danny Darren
Darryl Dave David Dennis Derek Diego Dominic Donald Doug Douglas Dylan Eddie Edgar Edward Edwin Eli Elias Elijah Eric
Ernest Ethan Eugene Evan Felix Fernando Francis Fred Freddie Frederick Gabriel Gavin Geoffrey George Gerald Gilbert
Glenn Gordon Greg Gregory Harold Harry Hector Henry Herbert Herman Howard Hugo Ian Isaac Ivan Jacob Jake James Jared
Jason Jeff Jeffrey Jeremy Jerome Jerry Jim Jimmy Joe Joel John Johnny Jonathan Jose Joseph Josh Joshua Juan Julian
Julio Justin Karl Keith Kenneth Kenny Kevin Kyle Larry Lawrence Leo Leon Leonard Leonardo Liam Logan Lucas Luis Luke
Malcolm Marcus Mario Marvin Matt Matthew Maurice Melvin Michael Miguel Mike Mitchell Mohamed Nathan Nathaniel Neil
Nicholas Nick Nicolas Noah Norman Oliver Omar Oscar Owen Patrick Paul Pedro Percy Peter Phil Philip Phillip Quentin
Ralph Ramon Raphael Raul Raymond Reggie Ricardo Richard Ricky Robert Roberto Rodney Roger Roland Ronald Ronnie Roy
Rudy Rupert Russell Ryan Samuel Scott Sean Sebastian Seth Shaun Simon Stanley Stephen Steve Steven Stewart Stuart Ted
Terrence Theodore Thomas Tim Timmy Timothy Todd Tom Tommy Tony Travis Trevor Tyrone Vince Vincent Walter Warren Wayne
Wesley William Zachary Zack
"""
_UNCOMMON_WOMEN = """
Adelheid Bertilda Cunegund Ermentrude Frideswide Gerlind Hildegard Iphigenia Jocosa Kriemhild Liutgard Mechthild
Nepheline Ottoline Perpetua Radegund Sunniva Theodelind Ursulina Vigdis Walburga Xanthippe Yrsa Zenobia
"""
_UNCOMMON_MEN = """
Aethelred Balduin Chlodomer Dagobert Ekkehard Faramund Guntram Hadubrand Isengrim Jaropolk Kunimund Liutprand Merovech
Nithard Odalric Pelagius Quintilian Radomir Sigismund Thorismund Ulfilas Volkmar Wulfstan Xenocrates
"""
COMMON_WOMEN, COMMON_MEN = tuple(_COMMON_WOMEN.split()), tuple(_COMMON_MEN.split())
UNCOMMON_WOMEN, UNCOMMON_MEN = tuple(_UNCOMMON_WOMEN.split()), tuple(_UNCOMMON_MEN.split())
